"""What adapts while training: `init(...) -> State` and `update(state, observation) -> (state, decision)`."""
