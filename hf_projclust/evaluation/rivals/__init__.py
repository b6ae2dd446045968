"""What a user might take in place of projective clustering, in as many bytes."""
