"""GGUF files for llama.cpp and what is built on it, with the codes of the plan as they are.

exporter    the file: which tensors, in which order, written and read back
blocks      codes of our grid in the blocks of GGUF
keys        what stands before the tensors: the config, in llama.cpp's words
vocabulary  the same of the tokenizer and its chat template
llama_cpp   a file run by llama.cpp in this process
agreement   what llama.cpp says against what our view says
"""
