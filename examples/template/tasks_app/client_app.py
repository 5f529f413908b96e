"""The client: it hosts every task, or those that its node configuration names (tasks="wine")."""

from fedmt_flower import client_app
from tasks_app.tasks import TASKS

app = client_app(*TASKS)
