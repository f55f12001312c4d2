"""Recipes: functions that return a complete configuration, named ``module.function``.

A recipe is a public function of a module of this package whose return type is ``Config``; ``quickstart`` is short for
``quickstart.quickstart``. Recipes import no torch. A recipe of your own is named by its dotted path.
"""
