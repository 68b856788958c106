"""The live service: sessions in Redis, recommendations over HTTP."""
