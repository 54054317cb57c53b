"""How the secrets of applications are hashed: as by default, but a thousand times less often.

The default takes half a second of a CPU, and several on a busy machine: as long as the shortest tokens live here.
"""

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class QuickHasher(PBKDF2PasswordHasher):
    iterations = 1000
