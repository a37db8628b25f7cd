"""The JSONL side: rollouts, the truth about threads."""
