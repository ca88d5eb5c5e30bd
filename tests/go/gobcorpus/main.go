// Gobcorpus is the other end of the gob tests.
//
//	gobcorpus corpus   prints one JSON line for each value of the corpus: its name, Go type, Go syntax and gob in hex
//	gobcorpus serve    answers requests, a JSON line each, about values of the corpus and of types made up by the caller
//
// Requests:
//
//	{"op": "same", "name": N, "hex": H}             does H decode to the corpus value N?
//	{"op": "encode", "values": [{type, value}...]}  these values, as one gob stream
//	{"op": "equal", "values": [...], "hex": H}      does the stream H hold these values?
//
// The answer is {"hex": H}, {"equal": true} or {"error": text}.
package main

import (
	"bufio"
	"bytes"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
)

type request struct {
	Op     string
	Name   string
	Hex    string
	Values []struct {
		Type  typeOf
		Value json.RawMessage
	}
}

func main() {
	if len(os.Args) != 2 || (os.Args[1] != "corpus" && os.Args[1] != "serve") {
		fmt.Fprintln(os.Stderr, "usage: gobcorpus corpus|serve")
		os.Exit(2)
	}
	if os.Args[1] == "corpus" {
		printCorpus()
		return
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	out := bufio.NewWriter(os.Stdout)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		answer := map[string]any{}
		if err := serve(lines.Bytes(), answer); err != nil {
			answer["error"] = err.Error()
		}
		if err := answers.Encode(answer); err != nil {
			panic(err)
		}
		out.Flush()
	}
}

func printCorpus() {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	lines := json.NewEncoder(out)
	for _, entry := range corpus {
		value := reflect.ValueOf(entry.pointer).Elem()
		encoded, err := encode([]reflect.Value{value})
		if err != nil {
			panic(entry.name + ": " + err.Error())
		}
		lines.Encode(map[string]string{
			"name": entry.name, "type": value.Type().String(), "value": fmt.Sprintf("%#v", value), "hex": encoded,
		})
	}
}

func serve(line []byte, answer map[string]any) (err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("panic: %v", problem)
		}
	}()
	var asked request
	if err := json.Unmarshal(line, &asked); err != nil {
		return err
	}
	var values []reflect.Value
	for _, given := range asked.Values {
		value := reflect.New(given.Type.reflect()).Elem()
		given.Type.set(value, given.Value)
		values = append(values, value)
	}
	switch asked.Op {
	case "encode":
		answer["hex"], err = encode(values)
		return err
	case "same":
		for _, entry := range corpus {
			if entry.name == asked.Name {
				values = []reflect.Value{reflect.ValueOf(entry.pointer).Elem()}
			}
		}
	}
	if err := compare(asked.Hex, values); err != nil {
		return err
	}
	answer["equal"] = true
	return nil
}

func encode(values []reflect.Value) (string, error) {
	var stream bytes.Buffer
	encoder := gob.NewEncoder(&stream)
	for _, value := range values {
		// By address, so that an interface travels as one and pointer receivers are found.
		if err := encoder.EncodeValue(value.Addr()); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(stream.Bytes()), nil
}

func compare(encoded string, wanted []reflect.Value) error {
	data, err := hex.DecodeString(encoded)
	if err != nil {
		return err
	}
	stream := bytes.NewBuffer(data)
	decoder := gob.NewDecoder(stream)
	for number, want := range wanted {
		got := reflect.New(want.Type())
		if err := decoder.DecodeValue(got); err != nil {
			return fmt.Errorf("value %d: %w", number, err)
		}
		if !same(got.Elem(), want, false) {
			return fmt.Errorf("value %d: %#v is not %#v", number, got.Elem(), want)
		}
	}
	if stream.Len() > 0 {
		return fmt.Errorf("%d bytes after the last value", stream.Len())
	}
	return nil
}
