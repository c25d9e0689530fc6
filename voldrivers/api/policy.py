"""What which role may do: oslo.policy with the field's rule names, and a file that an operator can edit."""

import logging
from collections.abc import Mapping
from pathlib import Path

from oslo_config import cfg
from oslo_policy import policy

from voldrivers.api.access import Caller
from voldrivers.errors import InvalidInput

_log = logging.getLogger(__name__)

_ADMIN = "role:admin"
_MEMBER = "rule:admin_api or (role:member and project_id:%(project_id)s)"
_READER = "rule:admin_api or (role:reader and project_id:%(project_id)s)"

#: The rules that there are, with who may do it unless the file says something else (Cinder's names).
RULES: Mapping[str, tuple[str, str]] = {
    "admin_api": (_ADMIN, "who is an administrator"),
    "volume:create": (_MEMBER, "create a volume"),
    "volume:get": (_READER, "show a volume"),
    "volume:get_all": (_READER, "list volumes"),
    "volume:update": (_MEMBER, "change a volume's name, description and metadata"),
    "volume:update_readonly_flag": (_MEMBER, "say that a volume is for reading only, or no longer"),
    "volume:delete": (_MEMBER, "delete a volume"),
    "volume:extend": (_MEMBER, "extend a volume"),
    "volume:extend_attached_volume": (_MEMBER, "extend a volume that is attached"),
    "volume:revert_to_snapshot": (_MEMBER, "revert a volume to its newest snapshot"),
    "volume:create_snapshot": (_MEMBER, "take a snapshot"),
    "volume:get_snapshot": (_READER, "show a snapshot"),
    "volume:get_all_snapshots": (_READER, "list snapshots"),
    "volume:update_snapshot": (_MEMBER, "change a snapshot's name, description and metadata"),
    "volume:delete_snapshot": (_MEMBER, "delete a snapshot"),
    "volume:attachment_create": (_MEMBER, "attach a volume"),
    "volume:attachment_update": (_MEMBER, "connect a reserved volume to a host"),
    "volume:attachment_complete": (_MEMBER, "say that a host is connected"),
    "volume:attachment_delete": (_MEMBER, "detach a volume"),
    "volume:attachment_get": (_MEMBER, "show attachments, with what their hosts need to connect"),
    "message:get": (_READER, "show a message"),
    "message:get_all": (_READER, "list messages"),
    "volume_extension:type_get": ("role:reader", "list volume types"),
    "volume_extension:volume_manage": (_ADMIN, "take over what is on a backend"),
    "volume_extension:volume_unmanage": (_ADMIN, "give a volume up and leave its bytes"),
    "volume_extension:volume_host_attribute": (_ADMIN, "see the backend of a volume"),
    "volume_extension:capabilities": (_ADMIN, "show what a backend can do"),
    "scheduler_extension:scheduler_stats:get_pools": (_ADMIN, "list pools"),
    "volume_extension:volume_admin_actions:reset_status": (_ADMIN, "reset a status"),
    "volume_extension:volume_admin_actions:extend_volume_completion": (_ADMIN, "complete an extend"),
    "voldrivers:attach": (_ADMIN, "have the service attach a volume to a host or an instance, any of them"),
    "voldrivers:ledger": (_READER, "see the size of every layer of a volume"),
    "voldrivers:retry": (_MEMBER, "go on with a failed extend"),
    "voldrivers:repair": (_MEMBER, "bring every layer of a volume to its size"),
    "voldrivers:cancel": (_MEMBER, "ask for an extend to be rolled back"),
    "voldrivers:metrics": ("role:reader", "read the figures for Prometheus"),
}


class Policy:
    """The rules in force."""

    def __init__(self, file: Path | None = None) -> None:
        """Read the operator's file (YAML, rule: expression). Raises InvalidInput for one that is wrong."""
        conf = cfg.ConfigOpts()
        conf(args=[], default_config_files=[], default_config_dirs=[])
        self._enforcer = policy.Enforcer(conf, policy_file=None if file is None else str(file))
        self._enforcer.suppress_default_change_warnings = True
        self._enforcer.register_defaults(
            [policy.RuleDefault(name, rule, description=what) for name, (rule, what) in RULES.items()]
        )
        try:
            if file is not None:
                file.read_text()
            self._enforcer.load_rules(force_reload=True)
            unknown = set(self._enforcer.file_rules) - set(RULES)
        except AttributeError as error:  # of oslo.policy, for a file that is no table
            raise InvalidInput(f"policy file {file}", "must be a table of rules") from error
        except (OSError, ValueError, policy.InvalidRuleDefault, cfg.Error) as error:
            raise InvalidInput(f"policy file {file}", f"cannot be used: {error}") from error
        wrong = [name for name, rule in self._enforcer.file_rules.items() if _is_misread(rule)]
        if wrong:
            raise InvalidInput(f"policy file {file}", f"the rule of {wrong[0]} makes no sense")
        if unknown:
            known = "voldrivers serve --print-policy shows those that there are"
            raise InvalidInput(f"policy file {file}", f"there is no rule {sorted(unknown)[0]}; {known}")
        try:
            self._enforcer.check_rules(raise_on_violation=True)
        except policy.InvalidDefinitionError as error:
            reason = f"refers to a rule that is not there, or to itself: {error}"
            raise InvalidInput(f"policy file {file}", reason) from error

    def allows(self, rule: str, caller: Caller, project: str) -> bool:
        """Tell whether a caller may do it in a project."""
        who = {"user_id": caller.name, "roles": list(caller.roles), "project_id": caller.project or project}
        try:
            return bool(self._enforcer.enforce(rule, {"project_id": project}, who))
        except OSError as error:  # of an `http:` rule whose server cannot be asked
            _log.warning("rule %s cannot be looked up, so it is no: %s", rule, error)
            return False


def _is_misread(rule: policy.RuleDefault) -> bool:
    """Tell whether oslo.policy made "nobody" or "everybody" of what it could not read; it only logs that."""
    if not isinstance(rule.check_str, str):
        return True
    return str(rule.check) == "!" and rule.check_str.strip() != "!"


def sample() -> list[str]:
    """Give the lines of a policy file in which every rule is as it would be without one."""
    return [line for name, (rule, what) in RULES.items() for line in (f"# {what}", f'#"{name}": "{rule}"')]
