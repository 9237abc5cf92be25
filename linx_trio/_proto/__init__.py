"""The wire, without I/O: terms, frames, messages, states. Nothing here imports trio or a socket."""
