"""The programs that measure, one for each kind of contender."""
