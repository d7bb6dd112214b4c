"""What the machine has: cores that follow the load, memory that is free, kept, limited, or does not suffice."""
