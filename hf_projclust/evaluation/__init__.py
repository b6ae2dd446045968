"""What is lost: fidelity to the dense model, and plots of the factored table."""
