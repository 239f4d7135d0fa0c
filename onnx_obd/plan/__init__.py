"""Who goes: from scores to masks. Plans never touch weights."""
