package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"sync"
	"unicode/utf8"
)

// recording keeps what is written to it, for the report.
type recording struct {
	lock sync.Mutex
	data bytes.Buffer
}

func (r *recording) Write(data []byte) (int, error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.data.Write(data)
}

// summary has the whole text while it is short and is a text; the size and SHA-256 always.
func (r *recording) summary() map[string]any {
	r.lock.Lock()
	defer r.lock.Unlock()
	sum := sha256.Sum256(r.data.Bytes())
	fields := map[string]any{"size": r.data.Len(), "sha256": hex.EncodeToString(sum[:])}
	if r.data.Len() <= 1<<16 && utf8.Valid(r.data.Bytes()) {
		fields["text"] = r.data.String()
	}
	return fields
}

// records is the host's own log: what it made of the plugin's stderr, and what it has to say about the plugin.
func (r *recording) records() []json.RawMessage {
	r.lock.Lock()
	defer r.lock.Unlock()
	records := []json.RawMessage{}
	for _, line := range bytes.Split(r.data.Bytes(), []byte("\n")) {
		if json.Valid(line) {
			records = append(records, bytes.Clone(line))
		}
	}
	return records
}
