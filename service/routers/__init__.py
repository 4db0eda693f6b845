"""Thin routes: parse, call, answer. Routers do not import each other."""
