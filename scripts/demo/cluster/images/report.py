"""Answers HTTP with what the other services say: a number from PostgreSQL, one from Redis, one from numpy."""

import http.server
import os

import numpy
import psycopg2
import redis


def report():
    with psycopg2.connect(host=os.environ["POSTGRES"], user="postgres", dbname="postgres", connect_timeout=5) as database:
        with database.cursor() as cursor:
            cursor.execute("select count(*) from pg_class")
            tables = cursor.fetchone()[0]
    visits = redis.Redis(host=os.environ["REDIS"], socket_timeout=5).incr("visits")
    return f"numpy {numpy.arange(10).sum()}, postgres {tables}, redis {visits}\n"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, text = 200, report()
        except (psycopg2.Error, redis.RedisError) as error:
            status, text = 503, f"{error}\n"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
