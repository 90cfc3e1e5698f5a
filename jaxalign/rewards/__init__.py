"""What is good, and how good relative to what: verifiers, reward transforms, advantages."""
