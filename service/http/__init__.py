"""HTTP below the routes: the protocol, admission control, authorization, middleware, request bodies."""
