"""Heads on frozen features: trained together in one bank, or in closed form, and chosen on validation."""

# The names of heads, here so that flags are refused before torch is imported: trained by gradient steps, of those the
# ones on tokens, and closed forms.
BANKS = ("linear", "attention", "cross_attention_mlp")
TOKEN_HEADS = ("attention", "cross_attention_mlp")
CLOSED_FORMS = ("ridge", "logistic", "knn")
HEADS = (*BANKS, *CLOSED_FORMS)
