"""Batch jobs: one declarative file, one command, safe to stop and to resume.

``qexp run job.toml`` reads and checks the file (:mod:`qexp.job.settings`), opens what it names
(:mod:`qexp.job.inputs`), fine-tunes (:mod:`qexp.job.run`) and writes a release, a certificate and
a report (:mod:`qexp.job.report`); its exit codes are in :mod:`qexp.job.exit_codes`. See
docs/batch-jobs.md.
"""
