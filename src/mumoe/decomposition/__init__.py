"""One MLP of a trained language model as sparse experts: captured, fitted, measured beside controls, inspected."""
