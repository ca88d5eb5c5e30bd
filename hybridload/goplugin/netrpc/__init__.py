"""go-plugin's first protocol: Go's net/rpc with gob values, over yamux."""
