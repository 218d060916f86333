"""Rules by primitive: each writes the operators that compute one."""
