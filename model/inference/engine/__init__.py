"""The engine: answers many requests at once with one model."""

from .engine import Engine
from .request import EngineClosed, EngineRequest, PromptScores, QueueFull, Ticket

__all__ = ["Engine", "EngineClosed", "EngineRequest", "PromptScores", "QueueFull", "Ticket"]
