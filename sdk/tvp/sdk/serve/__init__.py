"""`tvp serve`: tasks over HTTP. It needs the extra `serve`; nothing here is imported before the command runs.

The order of the modules is the way of a request:

    protocol   connections: how many, and how long one may be silent
    guard      what every request must pass; headers, access log
    keys       who may ask
    bodies     JSON or a form, within limits
    pictures   data URLs; remote: pictures that are fetched from allowed hosts
    questions  a request as the sdk takes it
    waiting    the queue: bounded, fair
    engine     the one thread that computes, in batches; views: pictures that were seen
    tasks      tasks that are loaded, swapped and dropped
    completions, own, operations   the endpoints: OpenAI's, our own, and those for operators
    page       the page at `/`, whose files are in web/
"""
