"""Write a circuit into a language model: grow, delay or suppress induction by weights on its training tokens."""
