"""The state layer of Codex-style agent services."""
