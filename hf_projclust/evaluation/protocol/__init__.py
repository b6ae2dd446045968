"""The protocol of MESSI (arXiv 2010.04290): classifiers compressed, and scored before and after more fine-tuning."""
