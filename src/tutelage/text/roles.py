"""The roles a token can have: whose words it belongs to, or `other` for what the template writes around."""

ROLES = ("system", "user", "assistant", "tool", "other")
ROLE_IDS = {role: index for index, role in enumerate(ROLES)}
MESSAGE_ROLES = ROLES[:-1]
