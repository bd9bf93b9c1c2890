"""What each command does, joined from all floors: a MODEL in, files and a plain dict of results out.

Nothing here prints. `on_progress(done, total, text)` is called along the way by whatever takes long.
"""
