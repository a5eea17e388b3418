"""What solving costs, beside what one would use instead."""
