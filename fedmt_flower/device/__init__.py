"""Everything that owns a process, a GPU or a socket."""
