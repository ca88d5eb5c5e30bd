package main

import (
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"time"
)

// A typeOf is a Go type as the caller describes it.
type typeOf struct {
	Kind   string // bool, int8, ..., string, bytes, slice, array, map, struct, ptr, iface, time
	Elem   *typeOf
	Key    *typeOf
	Len    int
	Fields []field
}

type field struct {
	Name string
	Type typeOf
}

var basics = map[string]reflect.Type{
	"bool": reflect.TypeFor[bool](), "string": reflect.TypeFor[string](), "bytes": reflect.TypeFor[[]byte](),
	"int": reflect.TypeFor[int](), "int8": reflect.TypeFor[int8](), "int16": reflect.TypeFor[int16](),
	"int32": reflect.TypeFor[int32](), "int64": reflect.TypeFor[int64](),
	"uint": reflect.TypeFor[uint](), "uint8": reflect.TypeFor[uint8](), "uint16": reflect.TypeFor[uint16](),
	"uint32": reflect.TypeFor[uint32](), "uint64": reflect.TypeFor[uint64](),
	"float32": reflect.TypeFor[float32](), "float64": reflect.TypeFor[float64](),
	"complex64": reflect.TypeFor[complex64](), "complex128": reflect.TypeFor[complex128](),
	"iface": reflect.TypeFor[any](), "time": reflect.TypeFor[time.Time](),
}

func (t typeOf) reflect() reflect.Type {
	switch t.Kind {
	case "slice":
		return reflect.SliceOf(t.Elem.reflect())
	case "array":
		return reflect.ArrayOf(t.Len, t.Elem.reflect())
	case "map":
		return reflect.MapOf(t.Key.reflect(), t.Elem.reflect())
	case "ptr":
		return reflect.PointerTo(t.Elem.reflect())
	case "struct":
		var fields []reflect.StructField
		for _, f := range t.Fields {
			fields = append(fields, reflect.StructField{Name: f.Name, Type: f.Type.reflect()})
		}
		return reflect.StructOf(fields)
	}
	if basic, ok := basics[t.Kind]; ok {
		return basic
	}
	panic("unknown kind " + t.Kind)
}

// set puts a described value into a variable. Integers are decimal strings, floats the hexadecimal digits of their bits,
// strings and bytes hexadecimal digits, maps lists of pairs, structs lists in the order of the fields; null is nil.
func (t typeOf) set(into reflect.Value, data json.RawMessage) {
	if string(data) == "null" {
		return
	}
	switch t.Kind {
	case "bool":
		into.SetBool(parse[bool](data))
	case "int", "int8", "int16", "int32", "int64":
		number, err := strconv.ParseInt(parse[string](data), 10, 64)
		check(err)
		into.SetInt(number)
	case "uint", "uint8", "uint16", "uint32", "uint64":
		number, err := strconv.ParseUint(parse[string](data), 10, 64)
		check(err)
		into.SetUint(number)
	case "float32", "float64":
		into.SetFloat(float(parse[string](data)))
	case "complex64", "complex128":
		parts := parse[[2]string](data)
		into.SetComplex(complex(float(parts[0]), float(parts[1])))
	case "string":
		into.SetString(string(unhex(parse[string](data))))
	case "bytes":
		into.SetBytes(unhex(parse[string](data)))
	case "slice", "array":
		items := parse[[]json.RawMessage](data)
		if t.Kind == "slice" {
			into.Set(reflect.MakeSlice(into.Type(), len(items), len(items)))
		}
		for i, item := range items {
			t.Elem.set(into.Index(i), item)
		}
	case "map":
		into.Set(reflect.MakeMap(into.Type()))
		for _, pair := range parse[[][2]json.RawMessage](data) {
			key, elem := reflect.New(into.Type().Key()).Elem(), reflect.New(into.Type().Elem()).Elem()
			t.Key.set(key, pair[0])
			t.Elem.set(elem, pair[1])
			into.SetMapIndex(key, elem)
		}
	case "struct":
		for i, item := range parse[[]json.RawMessage](data) {
			t.Fields[i].Type.set(into.Field(i), item)
		}
	case "ptr":
		into.Set(reflect.New(into.Type().Elem()))
		t.Elem.set(into.Elem(), data)
	case "iface":
		inner := parse[struct {
			Type  typeOf
			Value json.RawMessage
		}](data)
		value := reflect.New(inner.Type.reflect()).Elem()
		inner.Type.set(value, inner.Value)
		gob.Register(value.Interface())
		into.Set(value)
	case "time":
		parts := parse[struct{ Seconds, Nanoseconds, Offset int64 }](data)
		zone := time.UTC
		if parts.Offset != 0 {
			zone = time.FixedZone("", int(parts.Offset))
		}
		into.Set(reflect.ValueOf(time.Unix(parts.Seconds, parts.Nanoseconds).In(zone)))
	}
}

func parse[T any](data json.RawMessage) (value T) {
	check(json.Unmarshal(data, &value))
	return value
}

func float(digits string) float64 {
	bits, err := strconv.ParseUint(digits, 16, 64)
	check(err)
	return math.Float64frombits(bits)
}

func unhex(digits string) []byte {
	data, err := hex.DecodeString(digits)
	check(err)
	return data
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// same is equality as far as gob can carry it. NaN equals itself. Nil and empty slices and maps are equal, and so are
// nil pointers and pointers to zero values. Minus zero is told from zero, except in a field, where both are left out.
func same(a, b reflect.Value, inField bool) bool {
	if a.Kind() == reflect.Pointer {
		return a.IsNil() && b.IsNil() || same(target(a), target(b), inField)
	}
	if !a.IsValid() || !b.IsValid() {
		return a.IsValid() == b.IsValid()
	}
	if a.Type() != b.Type() {
		return false
	}
	if first, ok := a.Interface().(time.Time); ok {
		second := b.Interface().(time.Time)
		_, offset := first.Zone()
		_, other := second.Zone()
		// Go takes the seconds of a negative offset for unsigned when it decodes them, even its own.
		return first.Equal(second) && (offset-other)%256 == 0
	}
	if encoder, ok := a.Addr().Interface().(gob.GobEncoder); ok {
		first, err := encoder.GobEncode()
		check(err)
		second, err := b.Addr().Interface().(gob.GobEncoder).GobEncode()
		check(err)
		return string(first) == string(second)
	}
	switch a.Kind() {
	case reflect.Float32, reflect.Float64:
		return sameFloat(a.Float(), b.Float(), inField)
	case reflect.Complex64, reflect.Complex128:
		x, y := a.Complex(), b.Complex()
		zeros := inField && x == 0 && y == 0
		return zeros || sameFloat(real(x), real(y), false) && sameFloat(imag(x), imag(y), false)
	case reflect.Slice, reflect.Array:
		if a.Len() != b.Len() {
			return false
		}
		for i := 0; i < a.Len(); i++ {
			if !same(addressable(a.Index(i)), addressable(b.Index(i)), false) {
				return false
			}
		}
		return true
	case reflect.Map:
		if a.Len() != b.Len() {
			return false
		}
		for entries := a.MapRange(); entries.Next(); {
			other := b.MapIndex(entries.Key())
			if !other.IsValid() || !same(addressable(entries.Value()), addressable(other), false) {
				return false
			}
		}
		return true
	case reflect.Struct:
		for i := 0; i < a.NumField(); i++ {
			kind := a.Field(i).Kind()
			if !a.Type().Field(i).IsExported() || kind == reflect.Chan || kind == reflect.Func {
				continue
			}
			if !same(a.Field(i), b.Field(i), true) {
				return false
			}
		}
		return true
	case reflect.Interface:
		return a.IsNil() == b.IsNil() && (a.IsNil() || same(addressable(a.Elem()), addressable(b.Elem()), false))
	}
	return a.Interface() == b.Interface()
}

func sameFloat(a, b float64, inField bool) bool {
	if a != a || b != b {
		return a != a && b != b
	}
	return a == b && (inField || math.Signbit(a) == math.Signbit(b))
}

func target(pointer reflect.Value) reflect.Value {
	if pointer.IsNil() {
		return reflect.New(pointer.Type().Elem()).Elem()
	}
	return pointer.Elem()
}

func addressable(value reflect.Value) reflect.Value {
	copied := reflect.New(value.Type()).Elem()
	copied.Set(value)
	return copied
}
