"""What people read: tables, figures and HTML pages, pure functions of what `analysis` says."""
