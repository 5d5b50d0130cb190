"""The two ends of log_snr, arguments of schedules and of time embeddings."""

from diffenc.errors import UserError


def check_ends(name: str, log_snr_max: float, log_snr_min: float) -> None:
    """Raises UserError unless log_snr falls from t = 0 to t = 1."""
    if not log_snr_min < log_snr_max:
        raise UserError(
            f"{name}.log_snr_max = {log_snr_max} must be greater than log_snr_min = {log_snr_min}: "
            "log_snr falls from t = 0 to t = 1"
        )
