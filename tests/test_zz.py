import httpx, socket, threading, pytest, time, subprocess
from tests.conftest import *
from tests.live.redis_server import Server
from tests.faults.servers import free_port
P={"events":[{"type":"play","track_id":"g1-t01"}]}
def show(s, n=3, wait=0):
  try:
    with s.client() as c:
        for i in range(n):
            a=c.post(f"/sessions/s{i}/events", json=P); print("  POST",a.status_code, a.text[:220])
        a=c.get("/recommendations?session_id=x"); print("  REC", a.status_code, a.text[:100])
        a=c.get("/health/ready");print("  READY", a.status_code, a.text[:300])
        a=c.get("/operations");print("  OPS", a.status_code, str(a.json().get("redis") if a.status_code==200 else a.text)[:300])
  except AssertionError as e: print("  DID NOT START")
  code=s.stop(); print("  exit", code)
  for l in s.output:
    if l.startswith("{") and '"exception"' in l:
        import json; e=json.loads(l); print("  LOG", e["event"], e["exception"][-300:].replace("\n"," | "))
    else: print("  LOG", l[:700])
def test_a(start_service, tmp_path):
    print("\nCLUSTER FLAG, ORDINARY SERVER")
    with Server(tmp_path/"s") as srv: show(start_service(redis_url=srv.url, redis_cluster=True, durability="memory", redis_timeout_s=2))
def test_c(start_service, tmp_path):
    print("\nCLUSTER FLAG, NOBODY")
    show(start_service(redis_url=f"redis://127.0.0.1:{free_port()}", redis_cluster=True, durability="memory", redis_timeout_s=2))
@pytest.mark.parametrize("u",["unix:///tmp/x.sock","redis://127.0.0.1:1/3"])
def test_d(start_service, tmp_path,u):
    print("\nCLUSTER FLAG", u)
    show(start_service(redis_url=u, redis_cluster=True, durability="memory", redis_timeout_s=2))
def test_db(start_service, tmp_path):
    print("\nDB 99")
    with Server(tmp_path/"s") as srv: show(start_service(redis_url=srv.url+"/99", durability="memory", redis_timeout_s=2))
def test_query(start_service, tmp_path):
    print("\nQUERY")
    with Server(tmp_path/"s") as srv: show(start_service(redis_url=srv.url+"/0?foo=99", durability="memory", redis_timeout_s=2))
def test_sentinel(start_service, tmp_path):
    print("\nSENTINEL")
    p=free_port(); (tmp_path/"c").write_text(f"port {p}\n")
    r=subprocess.Popen(["redis-server",str(tmp_path/"c"),"--sentinel"],stdout=subprocess.DEVNULL); time.sleep(1)
    show(start_service(redis_url=f"redis://127.0.0.1:{p}", durability="memory", redis_timeout_s=2)); r.kill()
def test_b(start_service, redis_cluster):
    print("\nCLUSTER KILLED")
    import psutil
    s=start_service(redis_url=redis_cluster, redis_cluster=True, durability="memory", redis_timeout_s=2)
    with s.client() as c:
        print(c.post("/sessions/a/events",json=P).status_code)
        ports=[]
        for p in psutil.process_iter():
            if p.name()=="redis-server" and p.ppid()==os.getpid(): p.kill(); 
        for i in range(8):
            a=c.post(f"/sessions/s{i}/events", json=P); print("  POST",a.status_code, a.text[:220]); time.sleep(.1)
        a=c.get("/recommendations?session_id=x"); print("  REC", a.status_code, a.text[:100])
        a=c.get("/health/ready");print("  READY", a.status_code, a.text[:300])
        a=c.get("/operations");print("  OPS", a.status_code, str(a.json().get("redis") if a.status_code==200 else a.text)[:300])
    s.stop()
    for l in s.output:
        print("  LOG", l[:300], "....", l[-200:])
