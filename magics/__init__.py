"""The notebook language: parse a line or a cell, call the engine, relay what comes back."""
