//! One text, every scheme.
