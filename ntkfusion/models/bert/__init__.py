"""BERT and RoBERTa."""
