"""What runs inside an engine process. Imported by ranks only, never by the notebook."""
