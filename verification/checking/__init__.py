"""Level A of the checker, in the order of reading: text.py (bytes and hashes), document.py (what a certificate says), rationals.py (exact numbers), parts.py

(norms and constraint sets), theorem.py (what the evidence proves), claims.py (whether that supports what is published), outward.py (bounds in print).

`verification/certificate_format.py` reads the fields before, `verification/checker.py` answers after. All of it needs numpy and python-flint, and nothing of
the code that makes certificates.
"""
