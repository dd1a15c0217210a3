"""A table as one HTML file that needs nothing else: no network, no server, no second file.

``data`` gathers what the page shows of the runs, ``page`` puts it into ``report.html.jinja``;
the pictures are drawn by ``chart.js`` and ``report.js`` from the data in the page.
"""
