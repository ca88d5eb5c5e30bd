"""go-plugin over gRPC: the services that every plugin has, and the engines that carry them."""
