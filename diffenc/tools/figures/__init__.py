"""Figures of a trained run; each module measures and draws one."""
