"""The paper's tables, remade from runs."""
