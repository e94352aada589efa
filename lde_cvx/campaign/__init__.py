"""The soundness campaign: certified claims about random networks, attacked.

networks    random networks of every covered kind, and networks built to make floating-point verifiers wrong
cases       what is asked: network, input, norm, set, method, all from (seed, number)
attacks     points inside a certified region, found by chance, by gradients and by the witness search; flips settled in ball arithmetic
rounding    how far a float32 evaluation may be from the network
laws        metamorphic laws: what must not change when the question is asked in another way
run         one case after another into an append-only file; a second call goes on where the first stopped
"""
