"""What each expert does: coefficients, interventions, specialization, images."""
