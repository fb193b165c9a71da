"""Detection losses: raw head maps and targets enter, scalar losses leave; pure functions, logits in, nothing written back."""
