"""Random problems by the thousand, judged by a verifier that shares no formula with the package."""
