"""Policies: who may ask what, of which data, on which terms. Cedar decides; both sides speak of the same things.

schema.cedarschema   what a policy can speak of
rules.py             Rules: a validated set of policies, and the decision on one question
policy_file.py       the file they stand in, read anew when it changes
terms.py moments.py  a plan, and a moment, as a policy sees them
"""
