"""Detection losses as pure functions of logits and targets; nothing is written back."""
