"""The native runtime: a decoder in C++ and thin Python around it. Never imports torch or transformers."""
