"""The paper's tables, reproduced from runs."""
